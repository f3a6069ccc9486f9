"""The least memory on a stock interpreter: operators in strips of rows, their order, and where tensors lie."""
