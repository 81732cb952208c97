"""Training as pure functions over pytrees, and the devices they run on."""
