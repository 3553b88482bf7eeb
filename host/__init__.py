"""The application: data, training, the ladder, entropy and selection, costs, the command line and the demo."""
