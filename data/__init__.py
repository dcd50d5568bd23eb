"""Reading face sets: formats, decoding, order, loading, augmentation."""
