"""Gradient re-parameterization: a layer learns as a sum of linear branches would, without having them."""
