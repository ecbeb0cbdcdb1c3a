// Every native entry point, declared once: raw pointers, int64_t sizes, for the GPU a stream.
//
// All arrays are dense and row-major unless a parameter says otherwise; S is the storage type named
// by `dtype`, W the type of the computation (float, or double where S is double). Pointers may be
// null where the array is empty. Results do not depend on `threads`.
#pragma once

#include <cstdint>

namespace mdssd {

// A cudaStream_t.
using Stream = void*;

// The order is that of FLOATS in mdssd/ops/_dispatch.py.
enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

// a [n, 4], b [m, 4] -> iou [n, m], all S.
void box_iou_cpu(const void* a, int64_t n, const void* b, int64_t m, void* iou, DType dtype,
                 int threads);
// grad [n, m] -> grad_a [n, 4], grad_b [m, 4], all S.
void box_iou_backward_cpu(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                          void* grad_a, void* grad_b, DType dtype, int threads);

// boxes or loc [rows, 4] S, priors [period, 4] W: row i belongs to prior i % period.
void encode_boxes_cpu(const void* boxes, const void* priors, int64_t rows, int64_t period,
                      double v0, double v1, void* loc, DType dtype, int threads);
void encode_boxes_backward_cpu(const void* grad, const void* boxes, const void* priors,
                               int64_t rows, int64_t period, double v0, double v1,
                               void* grad_boxes, DType dtype, int threads);
void decode_boxes_cpu(const void* loc, const void* priors, int64_t rows, int64_t period, double v0,
                      double v1, void* boxes, DType dtype, int threads);
void decode_boxes_backward_cpu(const void* grad, const void* loc, const void* priors, int64_t rows,
                               int64_t period, double v0, double v1, void* grad_loc, DType dtype,
                               int threads);

// gt [offsets[images], 4], priors [count, 4], both float32 or float64 by `dtype`; `corners`: the
// priors are xyxy; offsets [images + 1]; index [images, count], iou [images, count] float32.
void match_priors_cpu(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                      bool corners, int64_t count, double iou_threshold, double iou_eps,
                      int64_t* index, float* iou, DType dtype, int threads);
// The same match, then loc [images, count, 4] as `gt` and labels [images, count].
void encode_targets_cpu(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t count, double iou_threshold,
                        double iou_eps, double v0, double v1, void* loc, int64_t* labels,
                        DType dtype, int threads);

// images [count, height, width, channels] -> out [count, out_height, out_width, channels].
void resize_cpu(const uint8_t* images, int64_t count, int64_t height, int64_t width,
                int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out, int threads);

// boxes [count, 4], scores [count], float32 or float64; idxs [count] or null; keep [count].
// Returns how many entries of keep are set.
int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t count,
                double iou_threshold, double iou_eps, int64_t* keep, DType dtype, int threads);

// loc [images, count, 4] S, logits [images, count, classes] S, priors [count, 4] W ->
// boxes [images, max_detections, 4] W, scores W, labels, found [images]. The results hold zeros.
// Without `softmax` the logits are scores; `per_class`: each image has results for every class but
// the background; without `keep_empty` boxes of zero area suppress one another; an infinite
// max_log_scale is no limit, nor are infinite clip_width and clip_height.
void detection_output_cpu(const void* loc, const void* logits, const void* priors, int64_t images,
                          int64_t count, int64_t classes, double score_threshold,
                          double nms_threshold, int64_t top_k, int64_t max_detections, double v0,
                          double v1, bool softmax, bool per_class, bool keep_empty, double iou_eps,
                          double max_log_scale, double clip_width, double clip_height, void* boxes,
                          void* scores, int64_t* labels, int64_t* found, DType dtype, int threads);

// x, y [images, channels, pixels] S, or [images, pixels, channels] if channels_last;
// scale [channels] W; rnorm [images, pixels] W, the reciprocal of each pixel's norm.
void l2norm_cpu(const void* x, const void* scale, double eps, int64_t images, int64_t channels,
                int64_t pixels, bool channels_last, void* y, void* rnorm, DType dtype,
                int threads);
void l2norm_backward_cpu(const void* grad, const void* x, const void* scale, const void* rnorm,
                         int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                         void* grad_x, void* grad_scale, DType dtype, int threads);
void l2norm_add_relu_cpu(const void* a, const void* b, const void* scale_a, const void* scale_b,
                         double eps, int64_t images, int64_t channels, int64_t pixels,
                         bool channels_last, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                         int threads);
void l2norm_add_relu_backward_cpu(const void* grad, const void* y, const void* a, const void* b,
                                  const void* scale_a, const void* scale_b, const void* rnorm_a,
                                  const void* rnorm_b, int64_t images, int64_t channels,
                                  int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                  void* grad_scale_a, void* grad_scale_b, DType dtype,
                                  int threads);

// loc [images, count, 4] S, logits [images, count, classes] S, loc_targets as loc in W,
// labels [images, count] -> losses [2, groups] W (localisation, confidence), selected [images,
// count], normaliser [groups] (max(1, positives)). A group is an image if per_image, else the batch.
// Returns false, with results of no meaning, if a label is not in [0, classes).
bool multibox_loss_cpu(const void* loc, const void* logits, const void* loc_targets,
                       const int64_t* labels, int64_t images, int64_t count, int64_t classes,
                       double neg_pos_ratio, bool per_image, void* losses, bool* selected,
                       int64_t* normaliser, DType dtype, int threads);
// Gradients of the two losses, already over the normaliser, [groups] of group_rows rows each, W ->
// grad_loc, grad_logits S.
void multibox_loss_backward_cpu(const void* grad_loc_loss, const void* grad_conf_loss,
                                const void* loc, const void* logits, const void* loc_targets,
                                const int64_t* labels, const bool* selected, int64_t rows,
                                int64_t group_rows, int64_t classes, void* grad_loc,
                                void* grad_logits, DType dtype, int threads);

// The CUDA side. Arrays are on the device unless said otherwise and start at a multiple of 16 bytes;
// nothing waits for the device. A `workspace` has the bytes that the function named *_workspace says.

void box_iou_cuda(const void* a, int64_t n, const void* b, int64_t m, void* iou, DType dtype,
                  Stream stream);
void box_iou_backward_cuda(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                           void* grad_a, void* grad_b, DType dtype, Stream stream);
void encode_boxes_cuda(const void* boxes, const void* priors, int64_t rows, int64_t period,
                       double v0, double v1, void* loc, DType dtype, Stream stream);
void encode_boxes_backward_cuda(const void* grad, const void* boxes, const void* priors,
                                int64_t rows, int64_t period, double v0, double v1,
                                void* grad_boxes, DType dtype, Stream stream);
void decode_boxes_cuda(const void* loc, const void* priors, int64_t rows, int64_t period, double v0,
                       double v1, void* boxes, DType dtype, Stream stream);
void decode_boxes_backward_cuda(const void* grad, const void* loc, const void* priors, int64_t rows,
                                int64_t period, double v0, double v1, void* grad_loc, DType dtype,
                                Stream stream);

// gt [offsets[images], 4] S (not double), priors [count, 4] float32; offsets [images + 1] on the
// host, read before the call returns. The workspace's `boxes` are offsets[images].
int64_t match_priors_workspace(int64_t boxes);
void match_priors_cuda(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                       bool corners, int64_t count, double iou_threshold, double iou_eps,
                       void* workspace, int64_t* index, float* iou, DType dtype, Stream stream);
// loc [images, count, 4] S, labels [images, count]; workspace of match_priors.
void encode_targets_cuda(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                         int64_t images, const void* priors, int64_t count, double iou_threshold,
                         double iou_eps, double v0, double v1, void* workspace, void* loc,
                         int64_t* labels, DType dtype, Stream stream);

// boxes [count, 4] S; order [count], the boxes by falling score; idxs [count] or null ->
// keep [count]: the kept ones in this order, then zeros; kept [1].
int64_t nms_workspace(int64_t count, DType dtype);
void nms_cuda(const void* boxes, const int64_t* order, const int64_t* idxs, int64_t count,
              double iou_threshold, double iou_eps, void* workspace, int64_t* keep, int64_t* kept,
              DType dtype, Stream stream);

// score_threshold below 1, top_k and max_detections up to 1024, count * classes up to 2^32.
void detection_output_cuda(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t count, int64_t classes, double score_threshold,
                           double nms_threshold, int64_t top_k, int64_t max_detections, double v0,
                           double v1, bool softmax, bool per_class, bool keep_empty,
                           double iou_eps, double max_log_scale, double clip_width,
                           double clip_height, void* boxes, void* scores, int64_t* labels,
                           int64_t* found, void* workspace, DType dtype, Stream stream);
int64_t detection_output_workspace(int64_t images, int64_t count, int64_t classes, int64_t top_k,
                                   int64_t max_detections);

// loc_loss, conf_loss [groups] W; more than 2^31 - 1 priors or classes throw std::length_error. A label that
// is not in [0, classes) gives a confidence loss of NaN.
void multibox_loss_cuda(const void* loc, const void* logits, const void* loc_targets,
                        const int64_t* labels, int64_t images, int64_t count, int64_t classes,
                        double neg_pos_ratio, bool per_image, void* loc_loss, void* conf_loss,
                        bool* selected, int64_t* normaliser, void* workspace, DType dtype,
                        Stream stream);
int64_t multibox_loss_workspace(int64_t images, int64_t count, int64_t classes, bool per_image,
                                DType dtype);
// The gradients of the losses, W, and the normaliser, all [groups], are on the device.
void multibox_loss_backward_cuda(const void* grad_loc_loss, const void* grad_conf_loss,
                                 const void* loc, const void* logits, const void* loc_targets,
                                 const int64_t* labels, const bool* selected,
                                 const int64_t* normaliser, int64_t rows, int64_t group_rows,
                                 int64_t classes, void* grad_loc, void* grad_logits, DType dtype,
                                 Stream stream);

void l2norm_cuda(const void* x, const void* scale, double eps, int64_t images, int64_t channels,
                 int64_t pixels, bool channels_last, void* y, void* rnorm, DType dtype,
                 Stream stream);
void l2norm_backward_cuda(const void* grad, const void* x, const void* scale, const void* rnorm,
                          int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                          void* grad_x, void* grad_scale, void* workspace, DType dtype,
                          Stream stream);
void l2norm_add_relu_cuda(const void* a, const void* b, const void* scale_a, const void* scale_b,
                          double eps, int64_t images, int64_t channels, int64_t pixels,
                          bool channels_last, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                          Stream stream);
void l2norm_add_relu_backward_cuda(const void* grad, const void* y, const void* a, const void* b,
                                   const void* scale_a, const void* scale_b, const void* rnorm_a,
                                   const void* rnorm_b, int64_t images, int64_t channels,
                                   int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                   void* grad_scale_a, void* grad_scale_b, void* workspace,
                                   DType dtype, Stream stream);
// Of either backward op: maps is 1, or 2 with add and ReLU.
int64_t l2norm_workspace(int64_t maps, int64_t channels, DType dtype);

void resize_cuda(const uint8_t* images, int64_t count, int64_t height, int64_t width,
                 int64_t channels, int64_t out_height, int64_t out_width, uint8_t* out,
                 Stream stream);

}  // namespace mdssd
