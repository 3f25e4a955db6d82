/* A libnvidia-ml.so.1 for tests. Each call reads the file named by the variable
 * FAKE_NVML anew: lines of "key=value", where "1.key" is for GPU 1 alone. So a test
 * changes what the driver does while a program uses it.
 *
 * -DOLD leaves out what libraries before 2021 do not have, and has the first forms
 * of what has several; -DBARE is a library without NVML.
 *
 * A call that breaks NVML's rules (before initialisation, during shutdown, two at
 * once on one GPU) is written to the file FAKE_NVML.misuse. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef BARE
int nothing(void) { return 0; }
#else

typedef struct device { int index, mig, busy; } *device;
typedef struct { device device; unsigned long long type, data; unsigned gi, ci; } event;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned version; int margin; } margin;
typedef struct { unsigned id, scope; long long time, latency; unsigned type; int ret; union { double d; unsigned u; unsigned long long ull; char raw[8]; } value; } field;
typedef struct { unsigned gpu, memory; } utilisation;

static struct device devices[8];
static int initialised, calls;
static long long xid_seen = 0;

static long long get(int gpu, const char *key, long long otherwise) {
	const char *path = getenv("FAKE_NVML");
	FILE *f = path ? fopen(path, "r") : NULL;
	char line[128], own[64];
	long long value = otherwise;
	int exact = 0;
	if (!f) return otherwise;
	snprintf(own, sizeof own, "%d.%s", gpu, key);
	while (fgets(line, sizeof line, f)) {
		char *eq = strchr(line, '=');
		if (!eq) continue;
		*eq = 0;
		if (!strcmp(line, own)) { value = atoll(eq + 1); exact = 1; }
		else if (!strcmp(line, key) && !exact) value = atoll(eq + 1);
	}
	fclose(f);
	return value;
}

static void misuse(const char *what) {
	char path[4096];
	FILE *f;
	snprintf(path, sizeof path, "%s.misuse", getenv("FAKE_NVML"));
	if ((f = fopen(path, "a"))) { fprintf(f, "%s\n", what); fclose(f); }
}

/* enter begins a call on a device and returns what it is to return. */
static int enter(device d, const char *what) {
	if (!initialised) { misuse(what); return 1; }
	__sync_fetch_and_add(&calls, 1);
	if (d && __sync_fetch_and_add(&devices[d->index].busy, 1)) misuse("two calls at once on one GPU");
	while (get(d ? d->index : -1, "hang", 0)) usleep(2000);
	return get(d ? d->index : -1, "ret", 0);
}

static int leave(device d, int ret) {
	if (!initialised) return ret;
	if (d) __sync_fetch_and_sub(&devices[d->index].busy, 1);
	__sync_fetch_and_sub(&calls, 1);
	return ret;
}

#define CALL(d, name) int ret = enter(d, name); if (ret) return leave(d, ret)
#define VALUE(name, type, key, otherwise) \
	int name(device d, type *out) { CALL(d, #name); long long v = get(d->index, key, otherwise); \
		if (v >= 0) *out = (type)v; \
		return leave(d, v < 0 ? 3 : 0); }

static int start(void) {
	int ret = get(-1, "init", 0);
	if (ret) return ret;
	initialised = 1;
	return 0;
}
int nvmlShutdown(void) {
	if (!initialised) { misuse("nvmlShutdown"); return 1; }
	if (calls) misuse("nvmlShutdown during a call");
	initialised = 0;
	return 0;
}
static int count(unsigned *n) { CALL(NULL, "count"); *n = get(-1, "count", 1); return leave(NULL, 0); }
static int handle(unsigned i, device *d) {
	if (!initialised) { misuse("handle"); return 1; }
	int ret = get(i, "handle", 0);
	devices[i].index = i;
	*d = &devices[i];
	return ret;
}
static int wait_event(event *e, unsigned ms) {
	CALL(NULL, "wait");
	for (unsigned waited = 0; waited < ms; waited += 5) {
		long long number = get(-1, "xid_number", 0);
		if (number > xid_seen) {
			xid_seen = number;
			memset(e, 0, sizeof *e);
			e->device = &devices[get(-1, "xid_gpu", 0)];
			e->type = get(-1, "xid_type", 8);
			e->data = get(-1, "xid", 79);
			return leave(NULL, 0);
		}
		usleep(5000);
	}
	return leave(NULL, 10);
}

#ifdef OLD
int nvmlInit(void) { return start(); }
int nvmlDeviceGetCount(unsigned *n) { return count(n); }
int nvmlDeviceGetHandleByIndex(unsigned i, device *d) { return handle(i, d); }
int nvmlEventSetWait(void *set, event *e, unsigned ms) { (void)set; return wait_event(e, ms); }
VALUE(nvmlDeviceGetCurrentClocksThrottleReasons, unsigned long long, "reasons", 0)
VALUE(nvmlDeviceGetRetiredPagesPendingStatus, unsigned, "pages", 0)
#else
int nvmlInit_v2(void) { return start(); }
int nvmlDeviceGetCount_v2(unsigned *n) { return count(n); }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, device *d) { return handle(i, d); }
int nvmlEventSetWait_v2(void *set, event *e, unsigned ms) { (void)set; return wait_event(e, ms); }
VALUE(nvmlDeviceGetCurrentClocksEventReasons, unsigned long long, "reasons", 0)

int nvmlDeviceGetMarginTemperature(device d, margin *m) {
	CALL(d, "margin");
	ret = get(d->index, "margin_ret", 0);
	if (m->version != (sizeof *m | 1u << 24)) ret = 25;
	m->margin = get(d->index, "margin", 40);
	return leave(d, ret);
}
int nvmlDeviceGetMemoryInfo_v2(device d, memory_v2 *m) {
	CALL(d, "memory");
	if (m->version != (sizeof *m | 2u << 24)) return leave(d, 25);
	m->total = get(d->index, "total", 1000) / (d->mig ? 2 : 1);
	m->reserved = get(d->index, "reserved", 100);
	m->used = get(d->index, "used", 600) / (d->mig ? 2 : 1);
	m->free = m->total - m->used - m->reserved;
	return leave(d, 0);
}
int nvmlDeviceGetRemappedRows(device d, unsigned *corr, unsigned *unc, unsigned *pending, unsigned *failed) {
	CALL(d, "rows");
	*corr = *unc = 0;
	*pending = get(d->index, "rows", 0) == 1;
	*failed = get(d->index, "rows", 0) == 2;
	return leave(d, 0);
}
int nvmlDeviceGetFieldValues(device d, int n, field *f) {
	CALL(d, "fields");
	for (int i = 0; i < n; i++) {
		char key[32];
		snprintf(key, sizeof key, "field%u", f[i].id);
		long long v = get(d->index, key, -1);
		f[i].ret = v < 0 ? 3 : 0;
		f[i].type = f[i].id == 82 ? 1 : 3;
		f[i].value.ull = 0xdeadbeefdeadbeefull; /* undefined unless ret is 0 */
		if (v >= 0 && f[i].type == 1) f[i].value.u = v;
		else if (v >= 0) f[i].value.ull = v;
	}
	return leave(d, 0);
}
int nvmlDeviceGetMigMode(device d, unsigned *now, unsigned *pending) {
	CALL(d, "mig mode");
	*now = *pending = get(d->index, "mig", 0) > 0;
	return leave(d, 0);
}
int nvmlDeviceGetMaxMigDeviceCount(device d, unsigned *n) { CALL(d, "mig count"); *n = 7; return leave(d, 0); }
static struct device instances[8][2];
int nvmlDeviceGetMigDeviceHandleByIndex(device d, unsigned i, device *out) {
	CALL(d, "mig handle");
	if (i >= 2 || (long long)i >= get(d->index, "mig", 0)) return leave(d, 6);
	instances[d->index][i].index = d->index;
	instances[d->index][i].mig = i + 1;
	*out = &instances[d->index][i];
	return leave(d, 0);
}
#endif

int nvmlSystemGetDriverVersion(char *out, unsigned n) {
	CALL(NULL, "driver");
	snprintf(out, n, "580.%lld", get(-1, "driver", 1));
	return leave(NULL, 0);
}
int nvmlDeviceGetUUID(device d, char *out, unsigned n) {
	CALL(d, "uuid");
	if (d->mig) snprintf(out, n, "MIG-fake-%d-%d", d->index, d->mig - 1);
	else snprintf(out, n, "GPU-fake-%d", d->index);
	return leave(d, 0);
}
int nvmlDeviceGetName(device d, char *out, unsigned n) { CALL(d, "name"); snprintf(out, n, d->mig ? "Fake MIG 1g" : "Fake H200"); return leave(d, 0); }
int nvmlDeviceGetMemoryInfo(device d, memory_v1 *m) {
	CALL(d, "memory");
	m->total = get(d->index, "total", 1000);
	m->used = get(d->index, "used", 600) + get(d->index, "reserved", 100);
	m->free = m->total - m->used;
	return leave(d, 0);
}
int nvmlDeviceGetTemperature(device d, unsigned sensor, unsigned *out) { (void)sensor; CALL(d, "temperature"); *out = get(d->index, "temp", 45); return leave(d, 0); }
int nvmlDeviceGetTemperatureThreshold(device d, unsigned kind, unsigned *out) {
	CALL(d, "threshold");
	while (get(d->index, "threshold_hang", 0)) usleep(2000);
	long long v = kind == 3 ? get(d->index, "gpu_max", -1) : kind == 2 ? get(d->index, "mem_max", -1) : -1;
	if (v < 0) return leave(d, 3);
	*out = v;
	return leave(d, 0);
}
VALUE(nvmlDeviceGetPowerUsage, unsigned, "power", 78000)
VALUE(nvmlDeviceGetEnforcedPowerLimit, unsigned, "limit", 700000)
int nvmlDeviceGetUtilizationRates(device d, utilisation *out) { CALL(d, "utilisation"); out->gpu = get(d->index, "util", 7); out->memory = 0; return leave(d, 0); }
int nvmlDeviceGetTotalEccErrors(device d, unsigned type, unsigned counter, unsigned long long *out) {
	CALL(d, "ecc");
	if (type != 1 || counter != 0) return leave(d, 2);
	*out = get(d->index, "ecc", 0);
	return leave(d, 0);
}
int nvmlEventSetCreate(void **set) { CALL(NULL, "event set"); *set = &devices; return leave(NULL, get(-1, "events", 0)); }
int nvmlEventSetFree(void *set) { (void)set; CALL(NULL, "event set"); return leave(NULL, 0); }
int nvmlDeviceGetSupportedEventTypes(device d, unsigned long long *types) { CALL(d, "event types"); *types = 8 | 2 | 1; return leave(d, 0); }
int nvmlDeviceRegisterEvents(device d, unsigned long long types, void *set) { (void)set; CALL(d, "register"); return leave(d, types == (8 | 2) ? 0 : 2); }
#endif
