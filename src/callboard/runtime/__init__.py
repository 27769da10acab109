"""Room 1: actors and work queues on JetStream; knows no agent, model or tool."""
