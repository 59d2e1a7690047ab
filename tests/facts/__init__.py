"""What we build on, pinned: a new release that changes a fact fails here first."""
