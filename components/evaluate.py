"""Judge every trained model on frozen measurement sets; a killed evaluation continues where it stopped.

Reads  artifacts/staged, artifacts/models/<variant>  and writes four things (paths relative to the project's root):

1. artifacts/evaluation/measurements/<degradation>.safetensors + .json: the frozen set that every method sees.
   json: {degradation, family, seed, split, sigma_y, image_shape, keys, groups: [{kind, attributes, indices}], sha256}.
   Samples whose operators cannot share a batch (another stride, say) lie in different groups; group g has the tensors
   `g/y`, `g/sigma_y` and `g/operator/<tensor>`.

2. reports/evaluation.json: a flat list, sorted by degradation, method, metric, of records
       {"method", "degradation", "metric", "value", "low", "high", "n", "nfe", "measurements_sha256"}
   value: float rounded to 6 significant digits, or null where it could not be computed; such a record has one more key
   "unavailable" (a sentence with the path where the missing file is looked for). low, high: 95% bootstrap interval over
   images, or null. n: images. nfe: network calls per image (0 for hpinv_y). A psnr record may have one more key "n_exact":
   how many images were restored without any error at 8 bits (each counts with the largest finite PSNR of its size).
   degradation: kinds of params.evaluate.families in their order, then "unconditional" (Table 4).
   method: hpinv_y (the measurement shown as an image), ddrm, palette, invfusion (samples), palette_mmse, invfusion_mmse
       (one step, Eq. 8), mmse (distilled, Eq. 7), nppc (only on the family that it was distilled for);
       on "unconditional": unconditional, palette, invfusion.
   metric: psnr, consistency_mse (mean over measurement entries), consistency_sse (the paper's sum over them); for samples
       also fd_pixel8x8, cfd_pixel8x8 (after projection), kd_pixel8x8 (Frechet and kernel distance over pixels averaged
       to 8x8), fid, cfid, kid, lpips; for nppc also nppc_captured_energy (fraction of the error's energy within the
       predicted directions) and nppc_std_ratio (predicted over actual standard deviation along them; 1 is calibrated);
       on "unconditional" only fd_pixel8x8, kd_pixel8x8, fid, kid.

3. reports/metrics.json: the available values nested {degradation: {method: {metric: value}}}, for `dvc metrics show`.

4. artifacts/evaluation/restorations/<degradation>/<method>.safetensors: the first params.report.gallery_images images.
   `images` uint8 (g, C, H, W) for every method, and for "truth" and "hpinv_y" too;
   palette, invfusion also: `draws` uint8 (g, 3, C, H, W), further posterior samples, and `std` float32 (g, C, H, W), the
   per-pixel standard deviation over `images` and `draws`, in [-1, 1] units;
   nppc also: `mean` float32 (g, C, H, W), `components` float32 (g, K, C, H, W), unit directions sorted by std, and
   `stds` float32 (g, K). A step along direction k: mean +- stds[k] * components[k].
   index.json: {degradation: {"keys": [...], "methods": [...]}}; "unconditional" has no "truth" and no keys of images.
"""
