# Build: the toolchain, nothing fetched but crates.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY src src
RUN cargo build --release --locked --bin zoom-chat-reports

# Run: the binary, CA certificates, nobody's rights.
FROM debian:bookworm-slim
RUN if [ ! -s /etc/ssl/certs/ca-certificates.crt ]; then \
        apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin zoom \
    && mkdir /data && chown 10001:10001 /data
COPY --from=build /build/target/release/zoom-chat-reports /usr/local/bin/zoom-chat-reports
USER 10001:10001
# The root may be read-only: everything that is written goes to DATA_DIR.
ENV DATA_DIR=/data LISTEN_ADDR=0.0.0.0:8080 LOG_FORMAT=json
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["zoom-chat-reports", "health"]
ENTRYPOINT ["zoom-chat-reports"]
CMD ["serve"]
