"""What MaskUpdater(compute=) is made of."""
