"""HTTP's words and shapes: requests in, responses and errors out. Nothing outside of this package knows them."""
