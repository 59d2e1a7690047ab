"""Many at once: seeded, fixed counts, conservation checked, and a canary that must fail."""
