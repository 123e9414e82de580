"""What the exercises in notebooks/exercises are set with and checked by; solutions lie in notebooks/solutions."""
