"""Errors, files, text from elsewhere, settings and the machine: what every other room stands on."""
