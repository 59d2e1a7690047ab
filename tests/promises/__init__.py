"""The promises of the design, one file each, over every pairing of producer and consumer."""
