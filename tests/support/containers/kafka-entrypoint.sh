#!/bin/bash
# KAFKA_A_B=c becomes a.b=c, as in the public image; the storage is formatted once.
set -eu
env | sed -n 's/^KAFKA_//p' | while IFS='=' read -r key value; do
  [ "$key" = HEAP_OPTS ] || printf '%s=%s\n' "$(tr 'A-Z_' 'a-z.' <<<"$key")" "$value"
done > /tmp/server.properties
run() { java ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*" "$@"; }
run kafka.tools.StorageTool format --ignore-formatted -t "$CLUSTER_ID" -c /tmp/server.properties
exec java ${KAFKA_HEAP_OPTS:-} -cp "/opt/kafka/libs/*" kafka.Kafka /tmp/server.properties
