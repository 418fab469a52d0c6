# One static binary, no shell, not root.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags=-s -o /skein ./cmd/skein && mkdir /data

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /skein /skein
# For `skein dev` and the disk tier of the cache: mount a volume here.
COPY --from=build --chown=65532:65532 /data /data
USER 65532:65532
EXPOSE 9092 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/skein"]
