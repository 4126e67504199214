"""`mycelia install` and `mycelia uninstall`: the mesh's processes as services of a host with systemd."""
