"""From models and records to registered versions."""

# What the checkpoint of the model that draws from the posterior is called, among those of a registered version.
MAIN = "invfusion"
