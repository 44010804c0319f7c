"""What a BNChannelPruner consists of: when channels go, which, and how a Trainer's objects lose them."""
