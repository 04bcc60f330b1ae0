# Stand-in for the public Kafka image: the same settings by environment, the jars from Maven.
FROM local/debian:12
RUN apt-get update && apt-get install -y --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
COPY jars /opt/kafka/libs
COPY kafka-entrypoint.sh /opt/kafka/entrypoint.sh
RUN useradd --uid 1000 appuser && mkdir -p /opt/kafka/bin /var/lib/kafka/data \
    && printf '#!/bin/sh\nexec java -cp "/opt/kafka/libs/*" org.apache.kafka.tools.BrokerApiVersionsCommand "$@"\n' \
       > /opt/kafka/bin/kafka-broker-api-versions.sh \
    && chmod 755 /opt/kafka/bin/*.sh /opt/kafka/entrypoint.sh && chown -R appuser /var/lib/kafka
VOLUME /var/lib/kafka/data
USER appuser
ENTRYPOINT ["/opt/kafka/entrypoint.sh"]
