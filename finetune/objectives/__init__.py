"""What is learned: the target of a prediction and the weight of a timestep."""
