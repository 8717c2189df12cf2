"""Numbers about models and pictures, with confidence intervals."""
