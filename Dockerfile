# The program in an image of its own. CUDA's libraries are not in it: a driver on the host is enough
# (`docker run --gpus all`).
#   docker build -t moe-frontier .
#   docker run --rm -v "$PWD/out:/out" moe-frontier rank --profile h100 --train-flops 1e22 --out /out/ranking
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --no-default-features --features cli

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/moe-frontier /usr/local/bin/moe-frontier
COPY LICENSE-MIT LICENSE-APACHE /usr/share/doc/moe-frontier/
# Driver functions that the host lends.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /out
ENTRYPOINT ["moe-frontier"]
CMD ["--help"]
