# The GPU agent. From the root:
#
#   docker build -f deploy/docker/agent.Dockerfile -t tidegate-gpu-agent .
#   docker run --gpus all --read-only -p 127.0.0.1:9410:9410 tidegate-gpu-agent
#
# It needs glibc. The driver's library, libnvidia-ml.so.1, is not in the image: the
# NVIDIA container runtime mounts the host's, which "utility" asks for. The base has
# a shell for the health check alone.

FROM golang:1.26.4-bookworm@sha256:b305420a68d0f229d91eb3b3ed9e519fcf2cf5461da4bef997bf927e8c0bfd2b AS build
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    .ci/agent /out/tidegate-gpu-agent -tags nomsgpack && test -x /out/tidegate-gpu-agent

FROM debian:bookworm-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171
COPY --from=build /out/tidegate-gpu-agent /usr/local/bin/tidegate-gpu-agent
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility
USER 65532:65532
EXPOSE 9410
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/9410 && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '200 OK' <&3"]
ENTRYPOINT ["/usr/local/bin/tidegate-gpu-agent"]
CMD ["--listen", "0.0.0.0:9410"]
