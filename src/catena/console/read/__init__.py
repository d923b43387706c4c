"""What pages show, read from a workspace: plain functions that give frozen values. No NiceGUI here."""
