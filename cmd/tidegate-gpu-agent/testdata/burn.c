/* Loads a GPU for `make gpu-test`: takes its memory step by step, holds it, gives
 * it back, then multiplies matrices on all of it. Plain allocations only, and
 * nothing of the card's settings is touched. It needs the driver's libcuda.so.1
 * alone, found when it runs; exit code 3 says that there is none.
 *
 *   burn STEPS STEP_SECONDS HOLD_SECONDS BURN_SECONDS
 *
 * prints the name of each phase when it begins. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long long address;

static void *cuda;

static void *find(const char *name) {
	void *f = dlsym(cuda, name);
	if (!f) { fprintf(stderr, "libcuda has no %s\n", name); exit(3); }
	return f;
}

static void check(const char *what, int code) {
	if (code) { fprintf(stderr, "%s: CUDA error %d\n", what, code); exit(1); }
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void phase(const char *name) { printf("%s\n", name); fflush(stdout); }
static void pause_for(double seconds) { usleep((useconds_t)(seconds * 1e6)); }

#define HEAD(target) ".version 7.0\n.target " target "\n.address_size 64\n" \
	".visible .entry burn(.param .u64 out_p, .param .u32 n_p)\n{\n" \
	".reg .pred p;\n.reg .b32 t, n, a, b;\n.reg .u64 out;\n.reg .f32 s, c<16>;\n" \
	"ld.param.u64 out, [out_p];\ncvta.to.global.u64 out, out;\nld.param.u32 n, [n_p];\nmov.u32 t, %tid.x;\n" \
	/* two halves between 1 and 2, others for each thread; the second negative */ \
	"mul.lo.u32 a, t, 0x9E3779B1;\nand.b32 a, a, 0x03ff03ff;\nor.b32 b, a, 0xbc003c00;\nor.b32 a, a, 0x3c003c00;\n"
#define ZERO(i) "mov.f32 c" #i ", 0f00000000;\n"
#define ZEROS ZERO(0) ZERO(1) ZERO(2) ZERO(3) ZERO(4) ZERO(5) ZERO(6) ZERO(7) ZERO(8) ZERO(9) ZERO(10) ZERO(11) ZERO(12) ZERO(13) ZERO(14) ZERO(15)
#define ADD(i) "add.f32 s, s, c" #i ";\n"
/* The store never happens, but the compiler does not know. */
#define TAIL "sub.u32 n, n, 1;\nsetp.ne.u32 p, n, 0;\n@p bra again;\nmov.f32 s, 0f00000000;\n" \
	ADD(0) ADD(1) ADD(2) ADD(3) ADD(4) ADD(5) ADD(6) ADD(7) ADD(8) ADD(9) ADD(10) ADD(11) ADD(12) ADD(13) ADD(14) ADD(15) \
	"setp.eq.f32 p, s, 0f7f7fffff;\n@p st.global.f32 [out], s;\nret;\n}\n"
#define MMA(w, x, y, z) "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {c" #w ", c" #x ", c" #y ", c" #z "}, {a, b, a, b}, {a, b}, {c" #w ", c" #x ", c" #y ", c" #z "};\n"
#define FMA(i) "fma.rn.f32 c" #i ", c" #i ", s, s;\n"

/* Tensor cores since Ampere; before, plain arithmetic. */
static const char tensor[] = HEAD("sm_80") ZEROS "again:\n" MMA(0, 1, 2, 3) MMA(4, 5, 6, 7) MMA(8, 9, 10, 11) MMA(12, 13, 14, 15) TAIL;
static const char plain[] = HEAD("sm_50") ZEROS "mov.f32 s, 0f3f7fffff;\nagain:\n" FMA(0) FMA(1) FMA(2) FMA(3) FMA(4) FMA(5) FMA(6) FMA(7)
	FMA(8) FMA(9) FMA(10) FMA(11) FMA(12) FMA(13) FMA(14) FMA(15) TAIL;

int main(int argc, char **argv) {
	if (argc != 5) { fprintf(stderr, "burn STEPS STEP_SECONDS HOLD_SECONDS BURN_SECONDS\n"); return 2; }
	int steps = atoi(argv[1]);
	double step = atof(argv[2]), hold = atof(argv[3]), burn = atof(argv[4]);
	if (steps < 1 || steps > 100) { fprintf(stderr, "STEPS: 1 to 100\n"); return 2; }
	if (!(cuda = dlopen("libcuda.so.1", RTLD_NOW))) { fprintf(stderr, "%s\n", dlerror()); return 3; }
	int (*init)(unsigned) = find("cuInit");
	int (*device_get)(int *, int) = find("cuDeviceGet");
	int (*attribute)(int *, int, int) = find("cuDeviceGetAttribute");
	int (*retain)(void **, int) = find("cuDevicePrimaryCtxRetain");
	int (*set_current)(void *) = find("cuCtxSetCurrent");
	int (*synchronize)(void) = find("cuCtxSynchronize");
	int (*memory)(size_t *, size_t *) = find("cuMemGetInfo_v2");
	int (*allocate)(address *, size_t) = find("cuMemAlloc_v2");
	int (*release)(address) = find("cuMemFree_v2");
	int (*fill)(address, unsigned char, size_t) = find("cuMemsetD8_v2");
	int (*load)(void **, const void *) = find("cuModuleLoadData");
	int (*function)(void **, void *, const char *) = find("cuModuleGetFunction");
	int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **) = find("cuLaunchKernel");

	int device, processors = 0;
	void *context, *module, *kernel;
	address taken[100], out;
	size_t free_bytes, total;
	check("cuInit", init(0));
	check("cuDeviceGet", device_get(&device, 0));
	check("cuDeviceGetAttribute", attribute(&processors, 16, device));
	check("cuDevicePrimaryCtxRetain", retain(&context, device));
	check("cuCtxSetCurrent", set_current(context));

	phase("ramp");
	check("cuMemGetInfo", memory(&free_bytes, &total));
	size_t piece = free_bytes / 100 * 97 / steps;
	for (int i = 0; i < steps; i++) {
		check("cuMemAlloc", allocate(&taken[i], piece));
		check("cuMemsetD8", fill(taken[i], 1, piece));
		check("cuCtxSynchronize", synchronize());
		pause_for(step);
	}
	phase("hold");
	pause_for(hold);
	for (int i = 0; i < steps; i++) check("cuMemFree", release(taken[i]));

	phase("burn");
	check("cuMemAlloc", allocate(&out, 256));
	if (load(&module, tensor)) check("cuModuleLoadData", load(&module, plain));
	check("cuModuleGetFunction", function(&kernel, module, "burn"));
	unsigned rounds = 200000;
	void *arguments[] = {&out, &rounds};
	for (double end = now() + burn; now() < end;) {
		check("cuLaunchKernel", launch(kernel, processors * 4, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL));
		check("cuLaunchKernel", launch(kernel, processors * 4, 1, 1, 256, 1, 1, 0, NULL, arguments, NULL));
		check("cuCtxSynchronize", synchronize());
	}
	phase("done");
	return 0;
}
