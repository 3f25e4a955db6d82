# The gateway, and as target "sim" the stand-in for a vLLM server. From the root:
#
#   docker build -f deploy/docker/gateway.Dockerfile -t tidegate .
#   docker build -f deploy/docker/gateway.Dockerfile -t tidegate-vllm-sim --target sim .
#
# Both binaries are static, the images have no shell, the user is 65532, and the
# root may be read-only: all that is written is under /var/lib/tidegate.

FROM golang:1.26.4-bookworm@sha256:b305420a68d0f229d91eb3b3ed9e519fcf2cf5461da4bef997bf927e8c0bfd2b AS source
# A proxy for Go modules, where the usual one cannot be reached.
ARG GOPROXY
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .

FROM source AS build-sim
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -tags nomsgpack -trimpath -o /out/tidegate-vllm-sim ./cmd/tidegate-vllm-sim

FROM gcr.io/distroless/static-debian12:nonroot@sha256:afa5c872c891853ca7fcf1f12c3edb23f7eeef36189728842dd51042ff57f7ab AS sim
COPY --from=build-sim /out/tidegate-vllm-sim /usr/local/bin/tidegate-vllm-sim
USER 65532:65532
EXPOSE 8000
ENTRYPOINT ["/usr/local/bin/tidegate-vllm-sim"]
CMD ["--listen", "0.0.0.0:8000"]

FROM source AS build
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -tags nomsgpack -trimpath -o /out/tidegate ./cmd/tidegate
RUN mkdir -p /out/state/journal

FROM gcr.io/distroless/static-debian12:nonroot@sha256:afa5c872c891853ca7fcf1f12c3edb23f7eeef36189728842dd51042ff57f7ab
COPY --from=build /out/tidegate /usr/local/bin/tidegate
# A volume that is mounted here for the first time takes over the owner.
COPY --from=build --chown=65532:65532 /out/state /var/lib/tidegate
ENV TIDEGATE_CONFIG=/etc/tidegate/tidegate.yaml
USER 65532:65532
WORKDIR /var/lib/tidegate
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# That the process lives. Whether requests should be sent to it is what /readyz says.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/tidegate", "status"]
ENTRYPOINT ["/usr/local/bin/tidegate"]
CMD ["serve"]
