"""The mathematics of the curation: influence, augmentation, supporters' vote, out-of-distribution scores, decisions."""
