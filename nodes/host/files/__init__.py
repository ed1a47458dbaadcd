"""Names, downloads and writing of model files in the folders of the host."""
