"""The app ``intake`` (optional): jobs out of RabbitMQ queues and Redis streams."""
