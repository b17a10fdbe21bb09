"""What the benchmarks beside this folder import. The scripts are one level up."""
