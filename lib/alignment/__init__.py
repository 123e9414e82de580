"""The alignment engine: compares recorded tensors and turns records into verdicts. It knows no model and no framework."""
