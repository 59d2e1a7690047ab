"""`stream()` and `TokenStream`: what they take, and the edges that were decided."""
