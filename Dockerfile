# A server with Keyward, on the official image of Redis or Valkey:
#
#   docker build -t keyward .
#   docker build -t keyward --build-arg SERVER=valkey/valkey:8.1 .
#
# The module is built on Debian, so an Alpine image of the server cannot load it.
ARG SERVER=redis:8.2

FROM rust:1.95.0-bookworm AS build
# bindgen reads the server's module header with libclang. Debian gives one version of it, and this stage is thrown away.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libclang-dev python3 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /keyward
COPY Cargo.toml Cargo.lock ./
COPY benches/accuracy benches/accuracy
COPY src src
RUN cargo build --release --locked
COPY packaging/third_party.py packaging/
RUN python3 packaging/third_party.py > third-party.txt

# Which version of the server it is, is the choice of whoever builds.
# hadolint ignore=DL3006
FROM ${SERVER}
# Not where the image keeps modules of its own: its entry point would load it a second time.
COPY --from=build --chmod=755 /keyward/target/release/libkeyward.so /usr/local/lib/keyward/
COPY --from=build --chmod=644 /keyward/third-party.txt /usr/local/share/doc/keyward/
COPY --chmod=644 LICENSE /usr/local/share/doc/keyward/
# redis or valkey, whichever it is: both have this number, and /data is theirs.
USER 999
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["sh", "-c", "$(command -v redis-cli || command -v valkey-cli) -e ping"]
# The entry point of the image puts the name of its server before this.
CMD ["--loadmodule", "/usr/local/lib/keyward/libkeyward.so"]
