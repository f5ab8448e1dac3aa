"""What a training step is fed, and the handlers that go with it."""
