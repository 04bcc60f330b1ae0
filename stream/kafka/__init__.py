"""The Kafka shell: transport, topics, worker, producer, recorder."""
