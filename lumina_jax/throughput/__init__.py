"""How fast the devices that are here train and draw."""
