"""Lightning callbacks: the shard writer and the image logger."""
