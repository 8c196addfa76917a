"""All device code, behind one interface. Nothing above this package names a device."""
