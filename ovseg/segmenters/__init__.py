"""Networks from image to label map: `Segmenter`."""
