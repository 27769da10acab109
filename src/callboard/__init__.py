"""Callboard: a durable actor runtime for AI agents on NATS JetStream."""
