"""Foundation without domain knowledge: configuration, telemetry, clock, broker, snapshot files."""
