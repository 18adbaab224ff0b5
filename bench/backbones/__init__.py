"""Backbones: text-to-image models as policies, and everything known about them before they are loaded."""
