"""What turns dvc.yaml into executed notebooks, here and on other machines."""
