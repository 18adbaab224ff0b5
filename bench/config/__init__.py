"""What a run is: settings, their bounds, and how a command's words become a specification."""
