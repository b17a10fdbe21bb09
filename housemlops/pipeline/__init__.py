"""What turns dvc.yaml into executed notebooks."""
