"""Files and arrays, never modules: the reader of each format beside its writer."""
