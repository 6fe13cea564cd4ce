"""PVA, personalised face inpainting with parallel visual attention (Xu et al., WACV 2024, arXiv 2312.03556)."""
