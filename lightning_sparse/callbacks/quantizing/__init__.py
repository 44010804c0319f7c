"""What QuantizeSparse is made of."""
