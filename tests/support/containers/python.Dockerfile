# Stand-in for the public Python image: Debian 12 has Python 3.11. The machine's CA bundle comes along,
# for package indexes behind a proxy of one's own.
FROM local/debian:12
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY ca.crt /etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
