"""Human preference, learned."""
