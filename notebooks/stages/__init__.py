"""What one notebook alone runs and is too long for its cells; what two share is lib's.

| notebook       | beside it                   |                                                              |
|----------------|-----------------------------|--------------------------------------------------------------|
| `50_forward`   | `live`                      | another implementation of RT-DETR run on the same weights    |
| `53_operators` | `operators`, `poison`       | operators one by one, and what NaN or nothing does to them   |
| `60_train`     | `overfit`                   | eight images learnt by heart                                 |
| `61_lockstep`  | `watch`                     | the steps of a training as records hold them                 |
| `71_detect`    | `panel`, `panel_live`       | detections of two sides beside each other, and its controls  |
"""
